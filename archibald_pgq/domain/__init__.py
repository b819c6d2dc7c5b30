"""What a job is and what may become of it: pure values and rules, no I/O, no clock, no SQL.

May import: nothing of this package but `errors`.
"""
