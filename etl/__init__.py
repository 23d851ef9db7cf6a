"""result-archiver: keeps the results of Applitools Autonomous runs for good, in SQL.

The rooms, from the outside in: `cli`, `scheduler`, `pipeline`, then `keeper`, `ledger`, `store`
and `schema`, which have the database. On the other end of the `wire`, in a process of its own,
`fetch_process`, `exchange`, `fetcher` and `client` have the network. Both know `normalize` and
`payload`.
"""

__version__ = "0.1.0"
