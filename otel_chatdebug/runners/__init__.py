"""One owner for each chat, where an application has several processes and one of them runs a chat's turns.

- `leases`: who the owner is, for how long
"""
