"""Processes of a command's own, such as the worker of `demo` and of `bench`.

children   one such process: started, watched, stopped, and quoted when it dies
leash      ends it when the command is gone, however it went
"""
