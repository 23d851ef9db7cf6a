"""The archiver's alternatives: separate programs, each written in its usual way.

All take the run list as their argument and the rest from the environment: API_URL,
DATABASE_URL, APPLITOOLS_API_KEY, and CONNECTIONS if they have threads.
"""
