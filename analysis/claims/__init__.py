"""The paper's claims on the embedded models: reproduced, not told apart, or refuted at this scale."""
