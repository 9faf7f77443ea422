"""What people and scripts read: console tables, JSON objects, HTML pages."""
