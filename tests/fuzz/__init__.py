"""Damaged and hostile files for every command that reads one."""
