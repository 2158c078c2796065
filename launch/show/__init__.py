"""How verbs show what they found; the measures themselves are in eval/."""
