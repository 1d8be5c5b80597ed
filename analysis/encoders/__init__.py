"""Tables 5 and 6: what each visual encoder, noise step and U-Net block gives."""
