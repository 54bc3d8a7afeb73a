"""Tables, charts, figures and the HTML report about runs; `runs` reads the run folders."""
