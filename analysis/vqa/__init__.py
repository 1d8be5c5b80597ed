"""Table 3: questions about pictures, asked through lmms-eval, the harness that this field measures with."""
