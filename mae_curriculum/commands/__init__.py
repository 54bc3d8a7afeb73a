"""One file a command of `python -m mae_curriculum`; each command is a function of its settings, which stand in
`config`.
"""
