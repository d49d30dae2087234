"""From the route log to results.json, tables, figures and the report page."""
