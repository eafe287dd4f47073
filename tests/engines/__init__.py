"""
Start the engines that production runs, isolated on loopback, for the tests.

Each module is one engine; `fixtures` offers them to every test. `make engines` installs what is missing.
"""
