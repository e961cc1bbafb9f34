"""A vision-language model behind a chat endpoint, as a reward."""
