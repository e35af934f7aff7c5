"""The tables: schema, the merge rule in SQL, the writer's thread, who lives, removal, migrations and the read side.

Nothing here knows of HTTP or spans. `database` opens engines and words what is wrong with one; `schema` declares;
`migrations` creates and upgrades; `merge` writes records; `writer` is the one thread that does so in an application
(its parts: `backlog`, what waits; `batch`, what is under way; `spool`, what outlives the process; `opened`, the
connection; `troubles`, back-off and what is told; `chores`, heartbeats and what else is done in between); `replicas`
and `liveness` say who lives, and sweep what the dead left open; `retention` removes what is too old or too much,
`deletion` what belongs to a chat (`messages` says what comes after a message); `consent` knows who is recorded;
`beside` opens connections for other threads than the writer's; `queries` reads for the CLI and the viewer.

Importing this package imports no SQLAlchemy: an application pays for that when its first record is written, in the
writer's thread.
"""
