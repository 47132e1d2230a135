terraform {
  # terraform_data and templates of strings; no provider has to be downloaded.
  required_version = ">= 1.5"
}
