"""The built-in handlers: callbacks that a configuration names by a short name, such as ``console``.

Each module is one handler and may do no more than a handler of yours: it knows `cdc` by its public names
only, and `cdc` knows it by the entry point that its short name stands for.
"""
