"""Every visual encoder in the same two-stage training: Tables 5 and 6 and Table 1's variants at embedded scale."""
