"""Teachers behind an API: they take a job, are asked whether it is done, and give a file."""
