"""What people look at: the data of runs (`runs`), tables, comparison with a baseline, curves, charts, pictures, the
HTML page.
"""
