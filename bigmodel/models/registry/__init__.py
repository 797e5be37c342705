"""How the rest of the package reaches families of models: by name, through one interface."""
