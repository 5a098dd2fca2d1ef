"""The rules of fair comparison, the protocols, and the ledger of test reads."""
