"""Looks at the machine and the installation. Everything here runs on the standard library alone."""
