"""One module per command; `config` has the settings of all of them."""
