"""The annex that says how far findings can be believed: small trainings whose best learning rate is known.

Only the command line may import it.
"""
