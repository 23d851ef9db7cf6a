"""result-archiver: keeps the results of Applitools Autonomous runs for good, in SQL.

The rooms, from the outside in: `cli`, `scheduler`, `pipeline`, then `ledger`, `client`,
`payload`, `normalize`, `store`, and `schema` below all of them.
"""

__version__ = "0.1.0"
