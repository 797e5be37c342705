"""One file per verb. The file name is the verb (with an underscore where Python reserves the word)."""
