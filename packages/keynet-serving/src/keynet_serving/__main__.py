"""`python -m keynet_serving`."""

from keynet_serving._cli import main

main()
