"""The experiment: which captions, which objects, trained how, and what difference it makes."""
