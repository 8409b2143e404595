"""What does not fit in memory: planned, partitioned, streamed, in folders that survive a
kill, on one process or many.
"""
