"""The deployment files, checked with their own tools and tried on the engines they name."""
