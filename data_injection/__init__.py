"""Which rare examples enter the training stream, where and when: exactly and auditably."""
