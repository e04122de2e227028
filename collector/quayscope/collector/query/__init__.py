"""Questions about what is stored: which samples (`select`), merged into a tree (`tree`), drawn or counted.

`request` reads a question from a URL and refuses what means nothing; the functions of the other
modules are pure over what the store answers.
"""
