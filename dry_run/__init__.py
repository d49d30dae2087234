"""`--dry_run`: what a run would ask for and take, and what is missing for it, without weights or network."""
