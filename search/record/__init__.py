"""What a study did: the ledger that is written while it runs, and the records that everybody reads."""
