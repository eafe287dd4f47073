"""Migrations of the journal, run by `keynet_server._database`."""
