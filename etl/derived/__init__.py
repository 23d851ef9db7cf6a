"""Tables that follow from payloads, and the rules of docs/REPORTS.md."""
