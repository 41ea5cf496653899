"""How tokens follow one another, for every family that generates: sampling, beams, stopping.

config      what a call may ask for (imports neither numpy nor torch)
decoding    one step of a model on any engine; what a family provides
sampling    the next token: the likeliest, or one that is drawn
beams       the likeliest text, by beam search
text        tokens to text, and when a text ends
"""
