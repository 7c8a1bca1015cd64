"""Comparisons of methods over seeds and any other fields of the config.

`grid` lists the runs, `runner` runs those that have no file yet, `record_store` keeps one file per
finished run, and `statistics`, `figures` and `html_report` present the results, from the files
alone.
"""
