"""The record of a study: the ledger, which is written while it runs, and plain records for all readers."""
