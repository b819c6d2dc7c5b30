"""What the doctor thinks of what it saw: facts of the database and of this host in, findings out; a module for each group of checks.

Owns: which facts a check needs (their names are the columns of `store/sql/doctor/*.sql`), the limits, the words, the remedies.
Guarantees: the same facts give the same findings; a check without a fault gives one that says `ok`. Must not: look at anything itself.
"""
