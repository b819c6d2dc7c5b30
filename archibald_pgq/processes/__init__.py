"""Processes of our own, such as the worker of `demo` and of `bench`, and what a fork means for one.

children   one such process: started, watched, stopped, and quoted when it dies
leash      ends it when the command is gone, however it went
forking    what a fork waits for, so that the child finds nothing half made
"""
