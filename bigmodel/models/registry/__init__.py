"""Access to families of models by name, through one interface."""
