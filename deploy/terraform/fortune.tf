# The example: the service of the guide, which knows nothing of Murmesh.

resource "terraform_data" "fortune" {
  for_each         = var.fortune ? local.services : {}
  input            = local.hosts_input[each.key]
  triggers_replace = [terraform_data.host[each.key].id]

  connection {
    host        = self.input.address
    user        = self.input.user
    port        = self.input.port
    private_key = file(self.input.key_file)
    host_key    = self.input.host_key
    timeout     = "2m"
  }

  provisioner "remote-exec" {
    inline = [format(self.input.run, file("${path.module}/scripts/fortune.sh"), "fortune")]
  }

  provisioner "remote-exec" {
    when = destroy
    inline = [format(
      self.input.run,
      "systemctl disable --quiet --now fortune.service; rm -f /etc/systemd/system/fortune.service; systemctl daemon-reload",
      "fortune",
    )]
  }
}

# Its name in the mesh, for rules. It is told again which hosts serve it when that changes.
resource "terraform_data" "fortune_name" {
  count            = var.fortune ? 1 : 0
  input            = local.first_input
  triggers_replace = [join(",", keys(local.services)), terraform_data.first_server.id]
  depends_on       = [terraform_data.member]

  connection {
    host        = self.input.address
    user        = self.input.user
    port        = self.input.port
    private_key = file(self.input.key_file)
    host_key    = self.input.host_key
  }

  provisioner "remote-exec" {
    inline = [format(
      self.input.run,
      "murmesh service set fortune --host ${join(",", keys(local.services))} --port 8181 --workload fortune.service",
      "fortune",
    )]
  }
}
