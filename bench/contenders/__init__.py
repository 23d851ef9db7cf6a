"""What the archiver is compared with: each a program of its own, as its kind is usually written.

All take the run list as their argument and the rest from the environment: API_URL,
DATABASE_URL, APPLITOOLS_API_KEY, and CONNECTIONS where they have threads.
"""
