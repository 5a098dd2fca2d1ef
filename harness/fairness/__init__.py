"""The rules that make a comparison fair, the protocols, and the ledger of test reads."""
