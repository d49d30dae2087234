"""What any program needs: errors, files, the machine, the command line, the run folder.

`errors`, `files` and `machine` import nothing of the project and lie below everything;
`command_line` and `run_folder` also know `config`.
"""
