"""The error ledger: where every annotated object got lost on the way from the answer to its mask."""
