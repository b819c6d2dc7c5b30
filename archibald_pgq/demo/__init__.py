"""`archibald-pgq demo`: a day of real work, played in about 70 seconds and checked from outside.

    run        the whole thing: a database, the conductor, the exit code
    conductor  the ERP and one worker as processes, the day's enqueues, another program that takes a lock
    watch      what the database shows: a look four times a second
    display    the looks, for a terminal or as lines
    summary    what it came to, and whether that is what was promised

The demo uses the queue as anyone would: the public `Archibald` to enqueue, `archibald-pgq run` to work, SQL to look.
"""
