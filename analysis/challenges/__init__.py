"""Figure 4: unusual content, a question about something absent, rare concepts, a shifted domain."""
