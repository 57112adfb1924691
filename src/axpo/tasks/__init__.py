"""Questions and demonstrations: the user's own files (`jsonl`) and the mini suite that ships (`mini`)."""
