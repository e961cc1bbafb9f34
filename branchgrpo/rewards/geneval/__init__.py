"""GenEval: are the objects there that a record names, of their colours, in their places?"""
