"""Methods against each other, over seeds and any other fields of the config.

`grid` says which runs, `comparison` runs those that no file holds yet, `queue` keeps one file per
finished run, and `table`, `figures` and `report` tell what came out, from the files alone.
"""
